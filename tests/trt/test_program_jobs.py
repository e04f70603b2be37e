from __future__ import annotations

from pathlib import Path

import pytest

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.files import load_program
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.driver import CudaDriver
from dipgo_deploy.trt.job import BuildFlags
from dipgo_deploy.trt.program_jobs import Machine, program_jobs
from dipgo_deploy.trt.target import Target


@pytest.mark.parametrize("static", [False, True])
def test_every_graph_is_a_job_for_the_machine(bundle_folder: Path, tmp_path: Path, static: bool) -> None:
    program = load_program(bundle_folder / "program.json")
    graphs = {graph.name: bundle_folder / "unet" / f"{graph.name}.onnx" for graph in program.graphs}
    target = Target("rtx", None, "1.7", CudaDriver((), None, "none"))
    machine = Machine(target, ("sm86", "sm89"), BatchRange(1, 4, 8), BuildFlags(static=static))
    jobs = program_jobs(program, graphs, "weights", machine, tmp_path)
    assert [job.graph for job in jobs] == [graph.name for graph in program.graphs]
    rows = program.contract.rows_per_image
    for job, graph in zip(jobs, program.graphs, strict=True):
        assert job.batch == (BatchRange(4, 4, 4) if static else BatchRange(1, 4, 8))
        assert job.profile.keys() == {*graph.inputs, *graph.reads} and job.dtypes.keys() >= {*graph.writes}
        assert all(shapes.opt[0] == 4 * rows and shapes.max[0] == 8 * rows for shapes in job.profile.values())
        assert job.graph_digest == graph_digest(graphs[graph.name].read_bytes())
        assert Path(job.timing_cache).name == "rtx-1.7-sm86+sm89.timing" and job.folder == str(tmp_path)
