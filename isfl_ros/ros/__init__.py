"""The ROS 2 side: the fusion node and what it is wired from, and the two ends of a demonstration.

The only folder of the package that imports rclpy and message packages. A pair of pictures flows
`node` (subscriptions) -> `sync` -> `worker` -> `processing` [`messages` -> isfl_ros.pipeline -> `messages`] ->
`outputs`; `accounting` knows at every instant where each received message is, `diagnostics` puts it into words.
"""
