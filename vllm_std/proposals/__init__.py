"""N-gram proposals: a draft step over several tokens of each request.

A draft step is given the last token of a request and proposals for the next ones, which an n-gram lookup finds in the
request's own tokens, as vLLM's `ngram` method does. The sparse model samples after every token of the step; its samples
are drafts as long as the proposal before each of them is what it sampled. So each draft is a sample of the sparse model
after its own prefix, whatever was proposed, and verification stays vLLM's.
"""
