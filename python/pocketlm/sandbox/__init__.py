"""The sandbox of chat templates: Jinja as published templates expect it, with bounds on what it can spend.

Loops and calls are counted, and so is the size of every string, number, list and mapping that a template
makes; what an operation would make is bounded before it is made. Methods and filters whose cost is not
bounded by that do not exist here. What remains, such as a long comparison in a long loop, meets a limit of
processor time, in compiling and in rendering.
"""

from pocketlm.sandbox.environment import TemplateSandbox
from pocketlm.sandbox.limits import MAX_TEXT, limited, spend
from pocketlm.sandbox.rewrite import count_steps

__all__ = ["MAX_TEXT", "TemplateSandbox", "count_steps", "limited", "spend"]
