"""The backend ``wasmtime``: guests in this process, on threads with room for their stack."""
