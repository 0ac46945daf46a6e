"""Nothing here is collected: every module needs a package that is installed in an environment of its own."""

collect_ignore_glob = ["*.py"]
