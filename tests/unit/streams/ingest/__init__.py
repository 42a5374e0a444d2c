"""Tests of how a team's own records become ours."""
