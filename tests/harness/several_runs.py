"""Runs lmms-eval several times in one process: ``several_runs.py FOLDER OUT RUN...``.

A run is a name and lmms-eval's own options, as JSON, of the task lightkv_tiny if they name no
other.  Tasks are those of FOLDER alone, since indexing lmms-eval's takes longer than all else here.
Results go to the file OUT, as JSON by name.
"""

from __future__ import annotations

import json
import sys

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

folder, out, *runs = sys.argv[1:]
manager = TaskManager("ERROR", include_path=folder, include_defaults=False, model_name="lightkv")
results = {}
for run in runs:
    name, options = json.loads(run)
    options = {"model": "lightkv", "tasks": ["lightkv_tiny"], **options}
    results[name] = simple_evaluate(task_manager=manager, **options)
with open(out, "w", encoding="utf-8") as file:
    json.dump(results, file, default=str)
