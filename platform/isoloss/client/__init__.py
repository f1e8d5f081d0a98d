"""The SDK: async (``isoloss.aio``) as written, blocking (``isoloss``) as generated from it. It needs no database."""
