"""What Alembic runs the migrations in: the connection, and the transaction, of whoever asks for them."""

from __future__ import annotations

from alembic import context

if hasattr(context, "config"):  # Alembic runs it; whoever imports it runs nothing
    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
    context.run_migrations()
