"""The embedded host: the subset of threestudio's interface that this project's method needs.

Names, config fields and defaults are threestudio's own, so that one YAML file runs on both hosts.
Importing this package registers nothing; :func:`.registry.find` imports modules when asked.
"""
