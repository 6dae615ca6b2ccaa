"""vLLM's OffloadingConnector without a GPU: its scheduler and its manager are vLLM's, its copies are torch's.

Copies are made as late as the connector allows, as they may come late on a stream of their own.
"""

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostOffloadingSpec(CPUOffloadingSpec):
    def get_worker(self, kv_caches):
        if self._worker is None:
            self._worker = HostWorker([each.tensor for each in kv_caches.tensors], self.num_chunks)
        return self._worker


class HostWorker(OffloadingWorker):
    """tensors: [blocks, bytes] each; one block is one chunk. loaded: blocks, of all workers."""

    loaded = 0

    def __init__(self, tensors: list[torch.Tensor], num_chunks: int):
        self.tensors = tensors
        self.host = [torch.zeros(num_chunks, *tensor.shape[1:], dtype=tensor.dtype) for tensor in tensors]
        self.waiting: dict[int, tuple] = {}
        self.finished: list[TransferResult] = []

    def submit_store(self, job_id, src_spec, dst_spec) -> bool:
        self.waiting[job_id] = (self.tensors, src_spec, self.host, dst_spec)
        return True

    def submit_load(self, job_id, src_spec, dst_spec) -> bool:
        self.waiting[job_id] = (self.host, src_spec, self.tensors, dst_spec)
        HostWorker.loaded += len(dst_spec.block_ids)
        return True

    def get_finished(self) -> list[TransferResult]:
        self.wait(set(self.waiting))
        finished, self.finished = self.finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        for job_id in job_ids & set(self.waiting):
            sources, source, targets, target = self.waiting.pop(job_id)
            for a, b in zip(sources, targets):
                b[torch.tensor(target.block_ids).long()] = a[torch.tensor(source.block_ids).long()]
            self.finished.append(TransferResult(job_id, True))
