"""Code that all subjects of the benchmarks share: the job, and the two processes of a subject.

It runs in each subject's own virtual environment, so it may import the standard library only.
"""

from .job import TOOL, Answer, Job, ask, result, step_of
from .processes import Subject, Where, main

__all__ = ["TOOL", "Answer", "Job", "Subject", "Where", "ask", "main", "result", "step_of"]
