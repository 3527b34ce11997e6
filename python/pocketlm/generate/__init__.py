"""From a prompt to text: sampling parameters, scheduling, streams and sessions."""
