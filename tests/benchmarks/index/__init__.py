"""The index in Milvus: recall, lag behind the trainer, upserts."""
