"""Protocols: how an encoder is judged on a task, one registered file each; they neither score nor see the test part.

A protocol is `fit(encoder, cases, effort) -> judge`: it learns from the training and validation cases
(`bench.parts.cases.Cases`) within the effort it is given (`bench.parts.phases.Effort`). The judge has `facts` for the
record and `predict(images)`, which takes normalised images (n, C, *S) and gives what the task's kind of truth wants: of
a mask (n, *S), 0 or one more than the place of the structure; of points (n, P, D) in pixels of these images; of grades
(n, K), probabilities. Prediction of the test part and scoring are the harness's, in one place for all protocols.
"""
