# needs: django
import os
import sys
import tempfile
import textwrap

# The tests are in files of their own, which workers import.
folder = os.environ.setdefault("DJANGO_FOLDER", tempfile.mkdtemp())
sys.path.insert(0, folder)

if __name__ == "__main__":
    for n in range(3):
        with open(os.path.join(folder, f"test_{n}.py"), "w") as file:
            file.write(
                textwrap.dedent("""
                from django.test import TestCase
                from django.contrib.auth.models import User

                class Tests(TestCase):
                    def test_a(self):
                        User.objects.create(username="a")
                        self.assertEqual(User.objects.count(), 1)

                    def test_b(self):
                        self.assertEqual(User.objects.count(), 0)
                """)
            )
    with open(os.path.join(folder, "settings_of_tests.py"), "w") as file:
        file.write(
            "SECRET_KEY = 'x'\nUSE_TZ = True\nINSTALLED_APPS = ['django.contrib.contenttypes', 'django.contrib.auth']\n"
            "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        )
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings_of_tests"
    import multiprocessing

    import django
    from django.test.runner import DiscoverRunner

    django.setup()
    multiprocessing.set_start_method("spawn")  # Django supports only `fork` and `spawn`
    print(DiscoverRunner(parallel=2, verbosity=0, interactive=False).run_tests([folder]))
