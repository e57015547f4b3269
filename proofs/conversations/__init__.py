"""Proof of long conversations: twenty public tasks in one session, played under each way to keep it within a window."""
