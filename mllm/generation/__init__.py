"""The decoding loop: what is asked, what stands at the next place, the caches, and the answer as it comes."""
