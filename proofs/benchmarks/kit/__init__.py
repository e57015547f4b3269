"""What every subject of the benchmarks shares: the job, and the two processes of a subject.

Runs in each subject's own virtual environment, so it may import the standard library only.
"""

from .job import TOOL, Job, Say, ask, result, step_of
from .processes import Subject, Where, main

__all__ = ["TOOL", "Job", "Say", "Subject", "Where", "ask", "main", "result", "step_of"]
