"""Train models by name: ``python -m scripts.train [--model deepfm,xgb] [flags]``.

Flags that this command does not know go to each training script unchanged.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence

from archive import catalog
from handlers import logs
from handlers.errors import UserError
from serving.process import ending_with_parent

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status, 0 only if every model was trained."""
    # Without allow_abbrev=False, a script's flag --mode would count as --model.
    parser = argparse.ArgumentParser(
        description="Train models, all of them by default.", allow_abbrev=False
    )
    parser.add_argument("--model", default="", help="names separated by commas")
    logs.to_stderr()
    args, flags = parser.parse_known_args(argv)
    try:
        names = args.model.split(",") if args.model else catalog.model_names()
        models = [catalog.get(name) for name in names]
    except UserError as error:
        logger.error("%s", error)
        return 1
    scripts = dict.fromkeys(tuple(model.training) for model in models)
    failed = []
    for script, *own in scripts:
        command = [sys.executable, "-m", f"training.{script}", *own, *flags]
        print(f"== {' '.join([script, *own])}", flush=True)  # not the flags: one may be a password
        run = subprocess.Popen(command, preexec_fn=ending_with_parent(signal.SIGTERM))
        try:
            status = run.wait()
        except KeyboardInterrupt:
            return run.wait()  # the script gets the Ctrl-C too, and cleans up
        if status != 0:
            failed.append(" ".join([script, *own]))
    if failed:
        logger.error("failed: %s", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
