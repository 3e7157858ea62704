"""The processes that stand around the fusion node in a soak: cameras, a listener, and somebody who restarts it."""
