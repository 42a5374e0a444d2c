"""Parts of an installation: compose file, systemd units, alarms, dashboard, Dockerfile. No code.

Begin with `compose.yml`; docs/operating.md says how each is used.
"""
