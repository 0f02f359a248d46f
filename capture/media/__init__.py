"""RTP packets in; ordered, counted chunks out."""
