"""Frames of any link and tunnel in; RTP columns, SIP datagrams and messages of TCP out."""
