"""What was heard, as bytes and as what they say: chunks, RTP, RTCP, digits, SRTP."""
