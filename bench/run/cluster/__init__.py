"""The grid on a Slurm cluster: a profile says with what, submitit submits, jobs look after themselves.

`driver` submits, `watch` waits; `work` is what a job runs, the local queue of `bench.run.launch` over its own
cells. Both speak through the store (records, claims) and the notes of `notes`; Slurm is only asked what became of jobs.
"""
