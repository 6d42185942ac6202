"""A network as source text that needs torch and nothing else."""

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Iterable

from torch import Tensor, fx, nn

from wganlab.networks.layers import DROPOUTS

#: What the code of a forward may name besides its own modules, and where it comes from.
IMPORTS = {
    "torch": "import torch",
    "device": "from torch import device",
    "inf": "from math import inf",
    "nan": "from math import nan",
}
#: Longest line that holds a module and its children.
WIDTH = 100


def source(network: nn.Module, name: str, *, says: str) -> str:
    """A Python module whose class ``name``, made without arguments, has the code of a network and its state's names.

    ``says`` is its docstring. The network is written as it is in evaluation mode, with dropout left out. Its dtype is
    part of the text, the values of its state are not.
    Raises ValueError, or what torch.fx raises, for a network that cannot be written so.
    """
    dtypes = {str(tensor.dtype) for tensor in network.state_dict().values() if tensor.is_floating_point()}
    if len(dtypes) > 1:
        raise ValueError(f"its weights are {' and '.join(sorted(dtypes))}")
    converted = [f"self.to({dtype})" for dtype in dtypes - {"torch.float32"}]  # torch makes its layers in float32
    writer = Writer(name)
    body = writer.body(network, *converted)
    classes = [f"class {name}(nn.Module):\n{text}" for text, name in [*writer.classes.items(), (body, name)]]
    code = "\n\n\n".join(classes)
    needed = {IMPORTS["torch"]} if re.search(r"\btorch\.", code) else set()
    imports = "\n".join([*sorted(writer.imports | needed), "from torch import nn"])
    return f'"""{says}"""\n\n{imports}\n\n\n{code}\n'


class OneLevel(fx.Tracer):
    """Traces the forward of a module, and none of its children's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Writer:
    """Writes modules as expressions, and collects the ``classes`` that these need, body -> name, each after its own."""

    def __init__(self, reserved: str) -> None:
        self.reserved = {"nn", reserved, *IMPORTS}
        self.classes: dict[str, str] = {}
        self.imports: set[str] = set()

    def expression(self, module: nn.Module) -> str:
        """Code that makes a module like this one."""
        if isinstance(module, DROPOUTS):
            return "nn.Identity()"
        names = list(module._modules)  # with those that are there twice
        if type(module) is nn.Sequential and names == [str(i) for i in range(len(names))]:
            return bracketed("nn.Sequential(", (self.expression(child) for child in module), ")")
        if type(module) is nn.ModuleList:
            return bracketed("nn.ModuleList([", (self.expression(child) for child in module), "])")
        if type(module) is nn.ModuleDict:
            items = (f'"{name}": {self.expression(child)}' for name, child in module.items())
            return bracketed("nn.ModuleDict({", items, "})")
        if getattr(nn, type(module).__name__, None) is type(module) and not names:
            return layer(module)
        return f"{self.define(module)}()"

    def define(self, module: nn.Module) -> str:
        """Name of a class that is made like this module; modules with the same code share one."""
        body = self.body(module)
        if body not in self.classes:
            name, number = type(module).__name__, 1
            while name in {*self.reserved, *self.classes.values()}:
                number += 1
                name = f"{type(module).__name__}{number}"
            self.classes[body] = name
        return self.classes[body]

    def body(self, module: nn.Module, *also: str) -> str:
        """The methods of a class for this module; ``also`` are statements at the end of its constructor."""
        lines = []
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            lines.append(f"self.{name} = nn.Parameter({empty(parameter)})")
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            lines.append(f'self.register_buffer("{name}", {empty(buffer)})')
        for name, child in module._modules.items():
            if child is not None:
                code = self.expression(child)
                lines.append(f"self.{name} = {code}" if name.isidentifier() else f'self.add_module("{name}", {code})')
        methods = [self.forward(module)]
        if lines:
            constructor = "\n".join(["super().__init__()", *lines, *also])
            methods.insert(0, f"def __init__(self):\n{textwrap.indent(constructor, '    ')}")
        return textwrap.indent("\n\n".join(methods), "    ")

    def forward(self, module: nn.Module) -> str:
        """The forward of a module, as torch.fx has seen it run."""
        graph = OneLevel().trace(module)
        state = module.state_dict()
        for node in graph.nodes:
            node.type = None  # annotations may name anything
            if node.op == "get_attr" and node.target not in state:
                raise ValueError(
                    f"{type(module).__name__} uses the tensor {node.target}, which is not in its state dict"
                )
        code = graph.python_code("self")
        named = {name for name in code.globals if re.search(rf"\b{name}\b", code.src) and not hasattr(builtins, name)}
        if foreign := named - IMPORTS.keys():
            raise ValueError(f"{type(module).__name__} calls {', '.join(sorted(foreign))}, which is not torch's")
        self.imports |= {IMPORTS[name] for name in named}
        text = re.sub(r";  [\w =]+ = None$", "", code.src.strip(), flags=re.MULTILINE)
        text = re.sub(r"\btorch\.(_C\._nn|nn\.functional)\.", "nn.functional.", text)  # public names of what is private
        return re.sub(r"(\w+) = (.*)\n    return \1$", r"return \2", text)


def bracketed(opening: str, items: Iterable[str], closing: str) -> str:
    """Code of a container: one line where it fits, else a line for each item."""
    parts = list(items)
    line = f"{opening}{', '.join(parts)}{closing}"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    return "\n".join([opening, *(textwrap.indent(part, "    ") + "," for part in parts), closing])


def layer(module: nn.Module) -> str:
    """A layer of torch.nn as the call that its repr shows, with what this leaves out of its parameters.

    Without what is so by default: newer versions of torch have parameters that others do not know.
    Raises ValueError where the repr is no call.
    """
    try:
        call: ast.Call = ast.parse(repr(module), mode="eval").body  # type: ignore[assignment]
        known = inspect.signature(type(module)).parameters
        kept = []
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Name):  # padding_mode=reflect
                keyword.value = ast.Constant(keyword.value.id)
            if ast.literal_eval(keyword.value) != known[keyword.arg or ""].default:
                kept.append(keyword)
        said = {keyword.arg for keyword in call.keywords} | {*[*known][: len(call.args)]}
        for name, parameter in known.items():  # align_corners of nn.Upsample, say
            value = getattr(module, name, None)
            optional = parameter.default is not parameter.empty and name not in said
            if optional and isinstance(value, bool | int | float | str) and value != parameter.default:
                kept.append(ast.keyword(name, ast.Constant(value)))
        call.func, call.keywords = ast.Name(f"nn.{type(module).__name__}"), kept
        return ast.unparse(call)
    except (SyntaxError, ValueError, KeyError, AttributeError):
        raise ValueError(f"the layer {' '.join(repr(module).split())} does not say how it is made") from None


def empty(tensor: Tensor) -> str:
    """Code of a tensor of the same shape, and dtype unless that is floating-point."""
    dtype = "" if tensor.is_floating_point() else f", dtype={tensor.dtype}"
    return f"torch.empty({tuple(tensor.shape)}{dtype})"
