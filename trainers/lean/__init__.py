"""LEAN: text-video retrieval with multi-modal hypergraphs and variational inference (WSDM 2024)."""
