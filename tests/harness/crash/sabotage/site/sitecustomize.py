"""Run by Python before anything else, where its directory is on the path (tests/harness/crash/sabotage)."""

import os

if os.environ.get("SABOTAGE_OF_A_TEST"):
    from tests.harness.crash.sabotage import VARIABLE, put_in

    put_in(os.environ[VARIABLE])
