"""`python -m inference_svc MODULE WORDS…`: run any module of the suite, `babysitter.mock` say."""

import os
import runpy
import sys

from inference_svc import enter

if len(sys.argv) < 2:  # noqa: PLR2004 - nothing but our own name
    sys.exit("usage: python -m inference_svc MODULE [WORDS…]")
if not sys.flags.safe_path and sys.path[0] == os.getcwd():  # noqa: PTH109 - as Python put it there, for -m
    del sys.path[0]
enter()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
