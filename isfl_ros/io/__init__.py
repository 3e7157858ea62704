"""Sources and sinks of pictures: folders, manifests, the built-in night drive."""
