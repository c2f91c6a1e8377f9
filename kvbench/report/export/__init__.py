"""Exports of stored runs to open formats. Runs are read and written one at a time, so that memory stays bounded."""
