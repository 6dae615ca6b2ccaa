"""What scheduler and speculator tell each other of a round, beside vLLM's draft length and tokens."""

from vllm_std.patches.wrapping import Patch

ROUNDS = Patch(
    name="rounds",
    replaces=(
        "GPUModelRunner.execute_model (its SchedulerOutput has a field `std`) and .sample_tokens (its "
        "ModelRunnerOutput is given `std_faults` and `std_proposals`)"
    ),
    why="a speculator is told nothing but a draft length, and can tell the scheduler nothing but tokens",
    upstream="none",
    remove_when="SchedulerOutput and ModelRunnerOutput carry what a method adds",
)


def execute_model(original, self, scheduler_output, *args, **kwargs):
    """GPUModelRunner.execute_model: the speculator is told how many draft steps the round takes."""
    std = getattr(self.speculator, "std", None)
    if std is not None:
        step = getattr(scheduler_output, "std", None)
        std.planned_steps = None if step is None else step.steps
    return original(self, scheduler_output, *args, **kwargs)


def sample_tokens(original, self, *args, **kwargs):
    """GPUModelRunner.sample_tokens: faults and proposals of the round go to the scheduler with the step's tokens."""
    output = original(self, *args, **kwargs)
    std = getattr(self.speculator, "std", None)
    if std is None or output is None:
        return output
    to = getattr(output, "model_runner_output", output)
    if std.faults.counts:
        to.std_faults = std.faults.collect()
    if std.passes is not None and std.passes.counted:
        to.std_proposals = std.passes.collect()
    return output
