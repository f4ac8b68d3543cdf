"""Walks over graphs, and subgraphs of their own."""

import torch
from tracing import graph_of, run

from soda_compile.ir.ancestry import ancestors_of, descendants_of
from soda_compile.ir.graphs import extract, find_node, results_of

x = torch.randn(3)
GRAPH = graph_of(lambda x: ((x.sin() + x.cos()).exp(),), x).graph
SIN, COS, ADD, EXP = (find_node(GRAPH, name) for name in ("sin", "cos", "add", "exp"))
(INPUT,) = GRAPH.find_nodes(op="placeholder")


def test_ancestors_hold_the_nodes_themselves():
    assert ancestors_of(ADD) == {INPUT, SIN, COS, ADD}
    assert descendants_of(SIN) >= {SIN, ADD, EXP}
    assert not descendants_of(SIN) & {INPUT, COS}


def test_ancestors_end_where_a_node_is_not_inside():
    assert ancestors_of(EXP, inside=lambda node: node is not SIN) == {INPUT, COS, ADD, EXP}
    assert ancestors_of(EXP, inside=lambda node: node is not ADD) == {EXP}
    assert ancestors_of(EXP, inside=lambda node: node is not EXP) == set()


def test_an_extracted_graph_computes_the_same():
    part = extract([SIN, COS], [ADD, EXP], [EXP]).graph
    assert [node.name for node in part.find_nodes(op="placeholder")] == ["sin", "cos"]
    (result,) = run(part, sin=x.sin(), cos=x.cos())
    assert torch.equal(result, (x.sin() + x.cos()).exp())
    assert results_of(part)[0].name == "exp"
