"""From a teacher behind the OpenAI protocol to a trained student: collect, curate, distill, and the whole way."""
