"""Which scheduler an engine with std has; `control.scheduler` subclasses vLLM's."""

from vllm_std.patches.wrapping import Patch

DRAFT_LENGTH = Patch(
    name="draft length",
    replaces=(
        "--scheduler-cls (a subclass of vLLM's Scheduler or AsyncScheduler); SchedulerOutput.skip_drafts (read, where "
        "there is one)"
    ),
    why="vLLM's own choice of draft length sees the batch size alone, and reserves slots for the longest",
    upstream="vLLM #32374",
    remove_when="a method can choose the draft length of a step from batch, context and acceptance",
)
SESSIONS = Patch(
    name="sessions",
    replaces="Scheduler._update_request_with_output (num_computed_tokens of a resumable request that stops)",
    why="0.32 counts drafts as computed that were accepted beyond a stop, so that a session's next turn reads them",
    upstream="none",
    remove_when="support for vLLM 0.32 ends",
)


def schedule_drafts(vllm_config) -> None:
    """Have vLLM build std's scheduler."""
    scheduler = vllm_config.scheduler_config
    name = "AsyncStdScheduler" if scheduler.async_scheduling else "StdScheduler"
    scheduler.scheduler_cls = f"vllm_std.control.scheduler.{name}"
