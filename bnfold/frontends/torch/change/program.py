"""Parameters of an exported program: lifted inputs of its graph, named in its signature."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from bnfold.frontends.torch.change.store import drop_factors, erase_node, insert_add_node, nested, release, set_argument
from bnfold.frontends.torch.tensors import AnyArray, like

HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class ProgramStore:
    """The parameters of one exported program, which is changed in place."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self._graph = program.graph_module.graph
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._given = {*(spec.target for spec in self._specs.values()), *program.state_dict, *program.constants}
        self._changing: set[str] = set(program.graph_signature.buffers_to_mutate.values())
        parameters = getattr(program.graph_signature, "parameters_to_mutate", {})
        self._changing |= set(parameters.values())
        self._mode = detect_fake_mode([node.meta.get("val") for node in self._graph.find_nodes(op="placeholder")])

    def _spec(self, handle: object) -> InputSpec | None:
        if not isinstance(handle, fx.Node) or handle.op != "placeholder":
            return None
        spec = self._specs.get(handle.name)
        return spec if spec is not None and spec.kind in HELD else None

    def _home(self, spec: InputSpec) -> dict[str, Any]:
        """The dictionary that holds the tensor."""
        assert spec.target is not None
        home: dict[str, Any] = self.program.state_dict
        return home if spec.target in home else self.program.constants

    def tensor(self, handle: object) -> torch.Tensor | None:
        spec = self._spec(handle)
        if spec is None or spec.target is None or spec.target in self._changing:
            return None
        stored = self._home(spec).get(spec.target)
        return stored if isinstance(stored, torch.Tensor) else None

    def place(self, handle: object) -> str | None:
        """The qualified name of the tensor that a node stands for."""
        spec = self._spec(handle)
        return None if spec is None else spec.target

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the graph holds now, by qualified names."""
        held = {**self.program.constants, **self.program.state_dict}
        places = [spec.target for spec in self.program.graph_signature.input_specs if spec.kind in HELD]
        return {place: held[place] for place in places if place and isinstance(held.get(place), torch.Tensor)}

    def place_of_source(self, handle: object) -> str | None:
        stack = [handle] if isinstance(handle, fx.Node) else []
        while stack:
            node = stack.pop()
            spec = self._spec(node)
            if spec is not None:
                return spec.target
            stack.extend(reversed(node.all_input_nodes))
        return None

    def exclude(self, nodes: Collection[fx.Node]) -> None:
        for node in nodes:
            spec = self._spec(node)
            if spec is not None and spec.target is not None:
                self._changing.add(spec.target)

    def nested_batchnorms(self, graph: fx.Graph) -> Iterator[tuple[fx.Node, str]]:
        return nested(graph, self.program.graph_module)

    def write(self, nodes: Sequence[fx.Node], arrays: dict[str, AnyArray], old: dict[str, Any], pattern: Any) -> None:
        unread: list[fx.Node] = []
        for name, array in arrays.items():
            handle = old[name]
            spec, held = self._spec(handle), self.tensor(handle)
            if spec is not None and held is not None and held.shape == array.shape and _is_read_by(handle, nodes):
                assert spec.target is not None
                self._home(spec)[spec.target] = like(array, held)
                continue
            place = self.place_of_source(handle)
            if place is None:
                path = (self.place_of_source(pattern) or "").rpartition(".")[0]
                last = "bias" if name == "input" else name
                place = f"{path}.{last}" if path else f"{nodes[0].name}_{last}"
            fresh = self._parameter(like(array, self._like(handle, pattern)), place)
            for node in nodes:
                set_argument(node, name, fresh)
            if isinstance(handle, fx.Node):
                unread.append(handle)
        release(unread, self._drop)

    def _like(self, handle: Any, pattern: Any) -> torch.Tensor:
        for each in (handle, pattern):
            held = self.tensor(each)
            if held is not None:
                return held
        place = self.place_of_source(pattern)
        if place is None:  # computed from nothing that is stored, as by torch.ones
            value = pattern.meta["val"]
            return torch.empty(0, dtype=value.dtype, device=value.device)
        found = self.program.state_dict.get(place, self.program.constants.get(place))
        assert isinstance(found, torch.Tensor)
        return found

    def _parameter(self, tensor: torch.Tensor, wish: str) -> fx.Node:
        """A fresh parameter behind the others: an input of the graph, an entry of the signature and the state.

        No name means another tensor than in the original, whose state may be loaded into the result.
        """
        program, signature = self.program, self.program.graph_signature
        taken = self._given | set(program.state_dict)
        name, count = wish, 1
        while name in taken:
            count += 1
            name = f"{wish}_folded" if count == 2 else f"{wish}_folded_{count}"
        placeholders = self._graph.find_nodes(op="placeholder")
        index = sum(spec.kind is InputKind.PARAMETER for spec in signature.input_specs)
        context = (
            self._graph.inserting_before(placeholders[index])
            if index < len(placeholders)
            else self._graph.inserting_before(next(iter(n for n in self._graph.nodes if n.op != "placeholder")))
        )
        with context:
            node: fx.Node = self._graph.placeholder("p_" + name.replace(".", "_"))
        node.target = node.name
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
        if self._mode is not None:
            node.meta["val"] = self._mode.from_tensor(parameter, static_shapes=True)
        spec = InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), name, None)
        signature.input_specs.insert(index, spec)
        self._specs[node.name] = spec
        program.state_dict[name] = parameter
        return node

    def insert_add(self, node: fx.Node, bias: AnyArray, pattern: Any, wish: str | None = None) -> fx.Node:
        path = (self.place_of_source(pattern) or "").rpartition(".")[0]
        held = like(bias, self._like(None, pattern))
        return insert_add_node(node, self._parameter(held, wish or (f"{path}.bias" if path else f"{node.name}_bias")))

    def drop_factors(self, node: fx.Node) -> None:
        drop_factors(node)

    def erase(self, node: fx.Node, parameters: list[fx.Node]) -> None:
        erase_node(node)
        places = [spec.target for each in parameters if (spec := self._spec(each)) and spec.target]
        release(parameters, self._drop)
        for place in places:
            self._drop_counter(place)

    def _drop_counter(self, place: str) -> None:
        """``num_batches_tracked`` goes with the running statistics."""
        owner, _, name = place.rpartition(".")
        if name != "running_mean" or any(s.target == place for s in self.program.graph_signature.input_specs):
            return
        counter = f"{owner}.num_batches_tracked".removeprefix(".")
        names = {name for name, spec in self._specs.items() if spec.target == counter and counter not in self._changing}
        for node in self._graph.find_nodes(op="placeholder") if names else ():
            if node.name in names and not node.users:
                self._drop(node)

    def _drop(self, node: fx.Node) -> None:
        spec = self._spec(node)
        if spec is None or spec.target is None:
            return  # an input of the user's
        specs = self.program.graph_signature.input_specs
        specs[:] = [other for other in specs if other is not spec]  # two of them take long to compare
        del self._specs[node.name]
        if spec.target not in {other.target for other in specs}:
            self._home(spec).pop(spec.target, None)
        self._graph.erase_node(node)

    def rename(self, node: fx.Node, wish: str) -> None:
        node._rename(wish)


def _is_read_by(node: fx.Node, readers: Sequence[fx.Node]) -> bool:
    """Whether these nodes alone read another, once each."""
    readings = [user for user in node.users for each in _all_inputs(user) if each is node]
    return len(readings) == len(readers) and node.users.keys() == set(readers)


def _all_inputs(node: fx.Node) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), nodes.append)
    return nodes
