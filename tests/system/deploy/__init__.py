"""What infra/deploy starts, started."""
