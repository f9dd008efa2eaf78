from __future__ import annotations

import subprocess
import sys

LOOK = """
import importlib, pkgutil, sys
import edged.serving
for module in pkgutil.iter_modules(edged.serving.__path__):
    importlib.import_module(f"edged.serving.{module.name}")
assert "edged.serving.engine" in sys.modules
for name in sorted(sys.modules):
    if name.startswith(("grpc", "zeroconf", "edged.api", "edged.cluster", "edged.cli")):
        print(name)
"""


def test_serving_knows_nothing_of_the_network_or_the_front_doors() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
