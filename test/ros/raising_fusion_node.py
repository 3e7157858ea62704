"""The fusion node around the fake pipeline, with a defect; run as a script by the tests.

A camera_info that is 13 pixels wide raises in the callback that takes it, at one of two lines by its height.
"""

from __future__ import annotations

import sys

from fake_fusion_node import FakePipeline

from isfl_ros.ros.fusion_node import main


class RaisingPipeline(FakePipeline):
    """Its construction, which is long before the node subscribes, puts the defect into the node."""

    def __init__(self, config):
        super().__init__(config)
        from isfl_ros.ros.node import FusionNode

        take = FusionNode._on_info

        def on_info(node, stream, message):
            if message.width == 13:
                if message.height == 1:
                    raise KeyError("another line")
                raise ValueError(f"thirteen by {message.height}\nand more")
            take(node, stream, message)

        FusionNode._on_info = on_info


if __name__ == "__main__":
    sys.exit(main(make_pipeline=RaisingPipeline))
