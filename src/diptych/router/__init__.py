"""From a `Request` to workers and back: admit it, choose who decodes and who prefills, follow it to its one end.

The router lives in the frontend's process and on its event loop. It holds what must outlive a worker (the prompt, the
sampling parameters, how many tokens the client has got) and so it is the one who retries when a worker refuses or dies.
"""
