"""`python -m infra.cli` is `nextwatch`, for processes that are started by other processes of ours."""

from infra.cli.main import main

main()
