"What all tests share."
import pytest, torch

@pytest.fixture(autouse=True)
def one_thread():
    "Tests are small, and several of them start processes of their own: more threads would only wait for each other."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
