"""Transforms between frames from TF.

tf2_ros is imported only when they are asked for: it comes with a ROS distribution, not from the Python package index.
"""

from __future__ import annotations

from rclpy.node import Node
from rclpy.time import Time

from isfl_ros.errors import InputError
from isfl_ros.registration import Transform
from isfl_ros.ros.registrar import NoTransform


class TfTransforms:
    """What /tf and /tf_static say; the callbacks run in the executor of `node`.

    Raises:
        InputError: on construction, when tf2_ros cannot be imported.
    """

    def __init__(self, node: Node):
        try:
            import tf2_ros
        except ImportError as error:
            raise InputError(
                "registration.transform.source tf needs the package tf2_ros_py",
                got=str(error),
                do="install it (apt install ros-$ROS_DISTRO-tf2-ros-py),"
                " or set registration.transform.source to parameters",
            ) from error
        self._tf = tf2_ros
        self._node = node
        self._buffer = None
        self._listener = None

    def start(self) -> None:
        """Subscribe, and know nothing."""
        self._buffer = self._tf.Buffer()  # without the node: it would offer a service that nobody asked for
        self._listener = self._tf.TransformListener(self._buffer, self._node, spin_thread=False)

    def stop(self) -> None:
        """Unsubscribe."""
        if self._listener is not None:
            self._listener.unregister()
            self._listener = None

    def forget(self) -> None:
        """Forget transforms of a time that is now ahead: TF itself would ignore all older ones."""
        if self._buffer is not None:
            self._buffer.clear()

    def lookup(self, *, target: str, source: str) -> Transform:
        """See `isfl_ros.ros.registrar.Transforms`. Knows nothing before `start`.

        Raises:
            InputError: what TF says is no transform.
        """
        if self._buffer is None:
            raise NoTransform("not listening")
        try:
            found = self._buffer.lookup_transform(target, source, Time()).transform
        except self._tf.TransformException as error:
            raise NoTransform(" ".join(str(error).split())) from None
        q, t = found.rotation, found.translation
        return Transform.from_quaternion((q.x, q.y, q.z, q.w), (t.x, t.y, t.z))
