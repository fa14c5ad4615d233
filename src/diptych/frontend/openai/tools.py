"""Tools as clients offer them, and calls of tools in messages."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from diptych.frontend.openai.fields import Body, Returned, Text, invalid

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Body):
    """A function that the model may call."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments; none: no arguments.")
    strict: bool | None = Field(None, description="Arguments always match the schema here.")

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema that arguments match: of an object, whatever else it says."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object"} | self.parameters


class Tool(Body):
    """Something that the model may use: a function."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """The name of a function."""

    name: FunctionName


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(Body):
    """Only some of the tools may be called, or must be."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class CalledFunction(Returned):
    """What was called, with which arguments."""

    client_notes = frozenset({"parsed_arguments"})
    name: FunctionName
    arguments: Text = Field(description="A JSON object, as text.")


class ToolCall(Returned):
    """A call that the assistant made."""

    client_notes = frozenset({"index"})
    id: Text = Field(min_length=1, max_length=256)
    type: Literal["function"]
    function: CalledFunction


class OfferedTools(Body):
    """The tools of a request, and which of them may or must be called; read off a body by `offered_tools`."""

    tools: list[Tool]
    """Those that may be called; empty: none."""
    is_required: bool = False
    """Whether the answer must be a call."""
    is_named: bool = False
    """Whether the client has named the function itself."""
    is_parallel: bool = True
    """Whether there may be several calls."""

    @model_validator(mode="after")
    def _check_names(self) -> "OfferedTools":
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise invalid("tools", "has two functions of the same name", "tools")
        return self


def offered_tools(tools: list[Tool] | None, choice: ToolChoice | None, *, is_parallel: bool | None) -> OfferedTools:
    """Return which tools a request offers.

    Raises: PydanticCustomError if the choice names a tool that is not there, or there are none to choose from.
    """
    parallel = is_parallel is None or is_parallel
    known = {tool.function.name: tool for tool in tools or ()}
    if choice is None or choice == "auto":
        return OfferedTools(tools=tools or [], is_parallel=parallel)
    if choice == "none":
        return OfferedTools(tools=[])
    if not known:
        raise invalid("tool_choice", "needs tools", "tool_choice")
    if choice == "required":
        return OfferedTools(tools=tools or [], is_required=True, is_parallel=parallel)
    if isinstance(choice, NamedTool):
        return OfferedTools(
            tools=[_find(known, choice.function.name)], is_required=True, is_named=True, is_parallel=False
        )
    allowed = choice.allowed_tools
    return OfferedTools(
        tools=[_find(known, tool.function.name) for tool in allowed.tools],
        is_required=allowed.mode == "required",
        is_parallel=parallel,
    )


def _find(known: dict[str, Tool], name: str) -> Tool:
    tool = known.get(name)
    if tool is None:
        raise invalid("tool_choice", f"names {name}, which is not among the tools", "tool_choice")
    return tool
