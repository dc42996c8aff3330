# SPDX-License-Identifier: MIT
"""The script debian_packages as a test."""

import os
import shutil
import subprocess
import sys

import pytest

from conftest import BUILD, CLIENT, SANITIZED


# All of them are some sixty thousand.
@pytest.mark.skipif(bool(SANITIZED), reason="the release build's")
@pytest.mark.parametrize("limit", [10000, pytest.param(0, marks=pytest.mark.soak)])
def test_the_machines_own_packages_survive_restart_and_kill(limit):
    if shutil.which("redis-cli") is None:
        pytest.skip("needs redis-cli")
    assert os.path.exists(CLIENT), "distkv-client was not built"
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "debian_packages")
    done = subprocess.run([sys.executable, script, "--build", BUILD, "--limit", str(limit)],
                          capture_output=True, text=True, check=False, timeout=450)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byte for byte" in done.stdout
