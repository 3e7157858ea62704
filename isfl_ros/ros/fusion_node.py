"""The executable `fusion_node`: signals, exit status, and the loop in which the node lives.

Heavy imports wait until the signal handlers stand: an interrupt during start-up ends the process as quietly as one
during operation.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isfl_ros.pipeline import FusionPipeline, PipelineConfig

GRACE_S = 4.5
"""Time to stop in after a signal, a little less than launch waits before it gets rough (5 s)."""

STARTUP_GRACE_S = 1.0
"""The same while the node starts: nothing is lost then, and imports and weights can take long."""

MALLOC_ARENAS = 2
"""Heaps that threads take memory from. glibc makes up to 8 a core: each worker thread (one an activation) leaves the buffers
of its pictures, free, in the heap it happened to get (9 MB at 640x480), for no other thread to use.
"""

_M_ARENA_MAX = -8  # malloc.h


class StopRequest:
    """SIGINT and SIGTERM as something that can be asked for; use it as a context, in the main thread.

    Python runs its own handlers only between two instructions of the main thread, which may sit in a long call
    (imports, loading weights, waiting for messages). The wake-up pipe is written at once, and a thread reads it.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._wake: Callable[[], None] | None = None
        self.starting = True
        """Set to False once there is something that deserves an orderly end."""

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self._event.is_set()

    def on_request(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` from another thread when the stop is asked for; None to take that back."""
        with self._lock:
            self._wake = wake

    def __enter__(self) -> StopRequest:
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        self._write = write
        # the pipe first: a signal between the two would be taken and forgotten
        self._fd_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._finished.set()
        if self.requested:
            # The process is ending: a second signal must not find Python's own handlers and their traceback. Neither may
            # it find the default action, to which Python returns on its last metres, but not from ignoring.
            for number in self._before:
                signal.signal(number, signal.SIG_IGN)
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def _watch(self) -> None:
        if not os.read(self._read, 1):
            return  # closed by __exit__
        self._event.set()
        with self._lock:
            if self._wake is not None:
                self._wake()
        # A call that cannot be interrupted (an import, a kernel) must not turn a stop into a kill.
        if self.starting and not self._finished.wait(STARTUP_GRACE_S):
            leave(0)
        if not self._finished.wait(GRACE_S):
            print(f"fusion_node: still busy {GRACE_S} s after the signal, left at once", file=sys.stderr)
            leave(0)


def leave(status: int) -> None:
    """End the process at once; for when a thread still sits in native code, which an orderly exit would crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def limit_arenas() -> None:
    """Keep the process to :data:`MALLOC_ARENAS`, where the C library has such and nobody has chosen their number."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, MALLOC_ARENAS)


def main(
    args: Sequence[str] | None = None, *, make_pipeline: Callable[[PipelineConfig], FusionPipeline] | None = None
) -> int:
    """Run the fusion node until a signal comes.

    Args:
        args: command line without the program's name; that of the process by default.
        make_pipeline: replaces the pipeline (tests).

    Returns:
        Exit status: 0 after a signal, 2 when the node could not be started because of what it was given.
    """
    limit_arenas()  # before the first thread
    with StopRequest() as stop:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
        from rclpy.utilities import remove_ros_args

        arguments = sys.argv[1:] if args is None else list(args)
        parser = argparse.ArgumentParser(
            prog="fusion_node",
            description="ROS 2 node that fuses a thermal and an RGB camera.",
            epilog="Parameters, remappings and log level follow --ros-args; see docs/node.md.",
        )
        try:
            parser.parse_args(remove_ros_args(["fusion_node", *arguments])[1:])
            rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        except Exception as error:
            print(f"fusion_node: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        try:
            return _run(stop, make_pipeline)
        finally:
            rclpy.try_shutdown()


def _run(stop: StopRequest, make_pipeline: Callable[[PipelineConfig], FusionPipeline] | None) -> int:
    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.logging import get_logger

    from isfl_ros.backends.fallback import device_was_lost
    from isfl_ros.errors import InputError
    from isfl_ros.pipeline import FusionPipeline
    from isfl_ros.ros.node import FusionNode

    try:
        node = FusionNode(make_pipeline=make_pipeline or FusionPipeline)
    except (InputError, ParameterException) as error:
        get_logger("fusion").error(f"cannot start: {error}")
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop.on_request(executor.wake)
    try:
        if node.settings.autostart:
            for transition in (node.trigger_configure, node.trigger_activate):
                if stop.requested:
                    break
                if transition() != TransitionCallbackReturn.SUCCESS:
                    return 2
        stop.starting = False
        while not stop.requested:
            try:
                executor.spin_once(timeout_sec=1.0)
            except ExternalShutdownException:
                raise
            except Exception as error:
                # One message that nobody thought of must not make everybody invisible. Without a context, though,
                # there is nothing to go on with.
                if not rclpy.ok():
                    raise
                node.note_internal_error(error)
        if not node.finalized:
            node.trigger_shutdown()
        if node.work_abandoned or device_was_lost():
            leave(0)
        return 0
    finally:
        stop.on_request(None)
        executor.shutdown()
        node.destroy_node()


if __name__ == "__main__":
    sys.exit(main())
