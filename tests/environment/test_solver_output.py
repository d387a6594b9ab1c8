"""Debug lines of the compiled solver reach no terminal; all other output does, in order."""

import ctypes
import os

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from layerprune.environment import quiet_solver

LINE = b"HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();\n"


def test_only_the_solvers_own_lines_are_dropped(capfd):
    print("before")
    with quiet_solver():
        ctypes.CDLL(None).printf(LINE)
        os.write(1, b"from another thread\n")
        print("from python")
    print("after")
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines[1:3]) == ["from another thread", "from python"]
    assert (lines[0], lines[3:]) == ("before", ["after"])


def test_output_is_back_after_an_error(capfd):
    with pytest.raises(ZeroDivisionError), quiet_solver():
        1 / os.write(1, b"")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "after\n"


def test_a_closed_standard_output_is_no_error(monkeypatch):
    def closed(_):
        raise OSError(9, "Bad file descriptor")

    ran = False
    monkeypatch.setattr(os, "dup", closed)
    with quiet_solver():
        ran = True
    assert ran


def program(seed):
    """A small programme with integer and continuous variables."""
    rng = np.random.default_rng(seed)
    num, rows = int(rng.integers(5, 60)), int(rng.integers(1, 20))
    matrix = (rng.random((rows, num)) < 0.3) * rng.normal(size=(rows, num))
    high = matrix.clip(0).sum(1) * rng.random(rows) * 0.3
    whole = (rng.random(num) < 0.6).astype(int)
    limits = LinearConstraint(matrix, -np.inf, high)
    options = {"time_limit": 3, "node_limit": 20, "mip_rel_gap": 0.005}
    return milp(rng.normal(size=num), constraints=limits, integrality=whole, bounds=Bounds(0, 1), options=options)


def test_the_solver_says_nothing(capfd):
    with quiet_solver():
        assert all(program(seed).status in (0, 1, 2) for seed in (*range(20), 466))  # scipy 1.17 prints on 466
    assert capfd.readouterr().out == ""
