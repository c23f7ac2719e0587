"""Report the files of a task: log lines and manifests."""
