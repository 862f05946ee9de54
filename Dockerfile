# predict.py in a container, for CPUs. Untested so far: no container engine was at hand.
#   docker build -t tsan .
#   docker run --rm -v /my/scans:/in:ro -v /my/results:/out tsan /in --output_dir /out
FROM python:3.11-slim
ENV MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1
WORKDIR /opt/tsan
# The line first that keeps several GB of CUDA out.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
COPY requirements.txt requirements-preprocessing.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-preprocessing.txt
COPY . .
ENTRYPOINT ["python", "/opt/tsan/predict.py"]
