"""The ``isfl`` command: one file a verb."""
