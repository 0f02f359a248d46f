"""What SIP and SDP say: messages, sessions, dialogs, offers and answers. No call table."""
