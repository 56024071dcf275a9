"""What people look at: contact sheets, tables and plots."""
