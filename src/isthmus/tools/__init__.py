"""Tools: what of the world agents may use, each by a name that they are given it under.

=============  ====================================================================
tool           what it is
=============  ====================================================================
FunctionTool   a Python function
CommandTool    a program, run without a shell
FetchTool      pages of the web, from hosts on a list
McpTool        one tool of an McpServer, which is a program or a URL
=============  ====================================================================
"""

from isthmus.tools.command import CommandTool
from isthmus.tools.fetch import FetchTool, fetch_tool
from isthmus.tools.function import FunctionTool, function_tool
from isthmus.tools.hosts import AllowedHosts
from isthmus.tools.tool import Tool, ToolLimits

__all__ = [
    "AllowedHosts",
    "CommandTool",
    "FetchTool",
    "FunctionTool",
    "Tool",
    "ToolLimits",
    "fetch_tool",
    "function_tool",
]
