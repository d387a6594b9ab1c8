"""The listing of a layer graph: one line a layer, as text."""

from __future__ import annotations

import torch

from layerprune.graph.graph_data import Frame, GraphData, Layer, Read


def listing(graph: GraphData) -> str:
    """List inputs, layers in order of execution, and outputs; see :meth:`GraphData.__str__`."""
    rows = [_row(graph, layer) for layer in graph.layers]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [f"inputs: {_values(graph, graph.inputs) or 'none'}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, *filter(None, row[3:])]).rstrip())
    return "\n".join([*lines, f"outputs: {_values(graph, graph.outputs) or 'none'}"])


def _row(graph: GraphData, layer: Layer) -> tuple[str, ...]:
    operands = ", ".join(_operand(read) for read in layer.operands)
    flow = f"{operands or '()'} -> {_values(graph, layer.outputs) or '()'}"
    state = "constant" if layer.param_only else "" if layer.index in graph.live else "dead"
    return (
        f"[{layer.index}]",
        layer.name,
        f"{layer.kind} {layer.type_name}",
        flow,
        f"params: {', '.join(layer.params)}" if layer.params else "",
        f"in: {_frame(graph, layer)}",
        f"({state})" if state else "",
    )


def _operand(read: Read) -> str:
    return "|".join(f"%{value}" for value in read) if read else "const"


def _values(graph: GraphData, values: tuple[int, ...]) -> str:
    return ", ".join(_value(graph, value) for value in values)


def _value(graph: GraphData, index: int) -> str:
    value = graph.values[index]
    sizes = "×".join(map(str, value.shape)) or "scalar"
    other = "" if value.dtype == torch.float32 else f" {str(value.dtype).removeprefix('torch.')}"
    return f"%{index} {sizes}{other}"


def _frame(graph: GraphData, layer: Layer) -> str:
    frame: Frame = graph.frames[layer.frame]
    if layer.is_module and frame.parent >= 0:
        frame = graph.frames[frame.parent]
    return (frame.fqn or "model") + (f"#{frame.call}" if frame.call else "")
